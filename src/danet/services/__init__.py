"""Files, processes, devices and external services; nothing here depends on what is trained."""
