"""The description of the API in OpenAPI 3.1, made from what the handlers work with, and served as `/v1/openapi.json`.

`operations` is the table of calls; `document` puts it together with the routes.
"""

from duckmesh_runtime.web.openapi.document import PATH, build_document, handler
from duckmesh_runtime.web.openapi.operation import Operation, Route

__all__ = ["PATH", "Operation", "Route", "build_document", "handler"]
