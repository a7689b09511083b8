"""Images on disk -> flat uint8 stores -> the patches of a plan, on the device."""
