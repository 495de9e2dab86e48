"""Leaves: one module for each tool that topoopt feels at home in; import the one you use.

`topoopt.integrations.transformers.TopoCallback`, `.accelerate`, `.lightning`; trackers: `.wandb.WandbSink`,
`.tensorboard.TensorBoardSink`, `.trackio.TrackioSink`.
"""
