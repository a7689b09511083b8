"""From image files to the patches of a step. Everything here is a pure function of files, settings and the step.

    find        which files there are, and which LR file belongs to which HR file
    header      sizes without decoding;  decode: one file -> pixels, by DALI or Pillow;  pixels: crop, bicubic LR
    arrays      the store's files, an array each, written, read and mapped
    make_store  decodes once, downscales, runs the teacher, and writes arrays;  store: what it wrote, read again
    flat        images one after the other in one tensor, as kernels read them;  memory: whether they fit
    rows        numbers for every step, made and moved to the device in blocks
    sampler     step -> Plan: image, corner and orientation of every patch, without a state
    source      what every source hands out: `Patches`; and `resident`, whose images lie on the device
    mapped      the store's arrays, mapped and cut by threads ahead of the step
    files       the original files, decoded and cropped ahead of the step through `dali`
    notes       what was left out or converted, said once at the end

All three sources give the same patches to the bit.
"""
