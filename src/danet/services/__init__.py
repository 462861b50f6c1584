"""Files, processes, devices and the outside world: nothing here knows what is trained."""
