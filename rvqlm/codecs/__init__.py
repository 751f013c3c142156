"""Audio to codes and back; see `rvqlm.codecs.registry.load_codec`."""
