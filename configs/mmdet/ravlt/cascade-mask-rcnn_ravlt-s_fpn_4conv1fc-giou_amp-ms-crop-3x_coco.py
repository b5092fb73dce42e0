# box AP 54.2, mask AP 46.8 (arXiv:2411.07635). Weights: MIT.
# Settings: github.com/qhfan/RALA: a layer norm for every map, batch norms over all GPUs, those of the stem decayed.
# How many GPUs is not stated: 8 are assumed.
_base_ = ["../_base_/models/cascade-mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(backbone=dict(model="ravlt_s", map_norm="layernorm", drop_path_rate=0.15))
optim_wrapper = dict(
    type="AmpOptimWrapper",
    paramwise_cfg=dict(custom_keys={"body.stem": dict()}),
)
sync_bn = "torch"
