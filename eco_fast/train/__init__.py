"""Training. Read `loop.py` first: one step stands on one screen there; everything else is a room that it looks into.

    start      `train(config)`: resolve the settings, load the inputs, build the update, run the loop
    inputs     what a run reads: networks, training images (store or files), validation images
    loop       the steps: take a batch, update, begin the next one; log, validate, save
    batches    step -> patches + alpha + teacher -> Batch, made one step ahead in a `lane` (a stream of its own)
    teacher    loads and judges the frozen teacher; `online` runs it on windows around the patches
    update     what a method does with a batch: forward, loss with its gradient, backward, and each `learner`'s update
    learner    a network with its optimiser and average (`optim`, `lamb`) and its guard (`guard`)
    graph      batches and updates as CUDA graphs;  compiler: torch.compile;  machine: device, precision
    world      several processes, on one machine or more;  peers: what machines share, and must not differ in
    log        metrics.jsonl, TensorBoard, the line in the terminal, timed by `speed`;  run_folder: checkpoints

A new loss goes into `update`, a second network gets a `Learner` there; a new kind of source goes into `data/`.
"""
