"""The duckmesh operator: Tenant and Compactor resources in, worker pods and status out."""
