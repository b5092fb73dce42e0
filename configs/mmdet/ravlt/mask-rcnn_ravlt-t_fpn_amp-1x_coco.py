# box AP 47.3, mask AP 42.7 (arXiv:2411.07635). Weights: MIT.
# Settings: github.com/qhfan/RALA: a layer norm for every map, batch norms over all GPUs, those of the stem decayed.
# How many GPUs is not stated: 8 are assumed.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x_swin.py"]
model = dict(backbone=dict(model="ravlt_t", map_norm="layernorm", drop_path_rate=0.1))
optim_wrapper = dict(
    type="AmpOptimWrapper",
    paramwise_cfg=dict(custom_keys={"body.stem": dict()}),
)
sync_bn = "torch"
