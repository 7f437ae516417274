"""The HTTP doors: routes, authentication, error to status; the only user of the aiohttp server."""
