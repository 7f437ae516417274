"""The query worker: the processes that run tenant SQL; imports nothing from services or adapters."""
