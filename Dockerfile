# Images of duckmesh: operator, runtime, sandbox, devservices (docker build --target ...).
# Any Debian base with Python 3.11, pip and venv will do: python:3.11-slim, or one made by debootstrap.
ARG BASE=python:3.11-slim

# ---------------------------------------------------------------- what every image starts from
FROM ${BASE} AS base
# Nothing installs anything at run time. initdb of the trial Postgres wants a user with a name.
RUN rm -rf /usr/lib/python3/dist-packages/pip* /usr/lib/python3/dist-packages/setuptools* \
      /usr/lib/python3/dist-packages/pkg_resources /usr/lib/python3/dist-packages/_distutils_hack \
      /usr/lib/python3/dist-packages/distutils-precedence.pth /usr/lib/python3/dist-packages/wheel* \
      /usr/local/lib/python3.*/site-packages/pip* /usr/local/lib/python3.*/site-packages/setuptools* \
      /usr/local/lib/python3.*/site-packages/pkg_resources /usr/local/lib/python3.*/site-packages/wheel* \
      /usr/local/lib/python3.*/site-packages/_distutils_hack /usr/local/lib/python3.*/site-packages/distutils-precedence.pth \
      /usr/lib/python3.*/ensurepip /usr/local/lib/python3.*/ensurepip /usr/share/python-wheels \
      /usr/bin/pip* /usr/local/bin/pip* /usr/local/bin/wheel \
 && { getent passwd 10001 || useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin app; }
ENV PATH=/opt/duckmesh/bin:$PATH \
    HOME=/tmp \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 10001

# ---------------------------------------------------------------- packages, by lock only; no pip ends up in /opt/duckmesh
FROM ${BASE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_PYTHON=/opt/duckmesh/bin/python
COPY requirements.lock /src/
# setuptools, which builds our own packages, as the root lock pins it.
RUN python3 -m venv --without-pip /opt/duckmesh \
 && awk '/^[^ ]/ { wanted = /^setuptools==/ } wanted' /src/requirements.lock > /src/build.lock \
 && pip install --require-hashes --target /opt/build -r /src/build.lock

FROM builder AS operator-packages
COPY operator/requirements.lock /src/operator/
RUN pip install --require-hashes -r /src/operator/requirements.lock

FROM builder AS runtime-packages
COPY runtime/requirements.lock /src/runtime/
RUN pip install --require-hashes -r /src/runtime/requirements.lock

# What runs a tenant's SQL has nothing that speaks to Postgres.
FROM runtime-packages AS sandbox-packages
RUN pip uninstall -y asyncpg duckdb-extension-postgres-scanner

# Postgres and SeaweedFS; only what the runtime does not have already.
FROM runtime-packages AS dev-packages
COPY runtime/requirements-dev.lock /src/runtime/
RUN pip install --require-hashes --prefix /opt/dev -r /src/runtime/requirements-dev.lock

# ---------------------------------------------------------------- our own code, a small layer of its own
FROM builder AS operator-code
COPY operator /src/operator
RUN PYTHONPATH=/opt/build pip install --no-deps --no-build-isolation --prefix /opt/code /src/operator

FROM builder AS runtime-code
COPY runtime /src/runtime
RUN PYTHONPATH=/opt/build pip install --no-deps --no-build-isolation --prefix /opt/code /src/runtime

# ---------------------------------------------------------------- the images
FROM base AS operator
COPY --from=operator-packages /opt/duckmesh /opt/duckmesh
COPY --from=operator-code /opt/code /opt/duckmesh
EXPOSE 9090
ENTRYPOINT ["duckmesh-operator"]

FROM base AS runtime-base
COPY --from=runtime-packages /opt/duckmesh /opt/duckmesh

FROM base AS sandbox
COPY --from=sandbox-packages /opt/duckmesh /opt/duckmesh
COPY --from=runtime-code /opt/code /opt/duckmesh
ENTRYPOINT ["duckmesh"]
CMD ["sandbox"]

FROM runtime-base AS devservices
COPY --from=dev-packages /opt/dev /opt/duckmesh
COPY --from=runtime-code /opt/code /opt/duckmesh
EXPOSE 5432 8333
ENTRYPOINT ["python", "-m", "duckmesh_runtime.dev.services"]

# The last one, hence the default target.
FROM runtime-base AS runtime
COPY --from=runtime-code /opt/code /opt/duckmesh
EXPOSE 8080 9090
ENTRYPOINT ["duckmesh"]
