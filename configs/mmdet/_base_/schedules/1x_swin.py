# As 1x.py with the optimizer of Swin's detectors (arXiv:2103.14030): norms and tables of biases are not decayed.
_base_ = "./1x.py"
optim_wrapper = dict(
    optimizer=dict(lr=0.0001, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), ".bias.table": dict(decay_mult=0.0)}),
)
