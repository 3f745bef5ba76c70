"""Devices and processes: meshes and sharding, start-up, failure detection, compiler options."""
