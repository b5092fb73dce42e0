# No published figure at hand (arXiv:2507.00698). Weights: no licence stated.
# Settings: github.com/qhfan/MALA: a layer norm for every map, batch norms over all GPUs, those of the stem decayed.
# How many GPUs is not stated: 8 are assumed.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(backbone=dict(model="mavit_s", map_norm="layernorm", drop_path_rate=0.15))
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(lr=0.0004),
    paramwise_cfg=dict(custom_keys={"body.stem": dict()}),
)
sync_bn = "torch"
