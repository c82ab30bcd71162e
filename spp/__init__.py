"Solution Path Pruning: one search gives a smaller pretrained transformer at every size"
__version__ = "0.1.0"
