"""Trial and test services: embedded Postgres, SeaweedFS, and `duckmesh dev`; needs the `dev` extra."""
