# box AP 45.9 (arXiv:2411.07635). Weights: MIT.
# Settings: github.com/qhfan/RALA: a layer norm for every map that the pyramid takes, batch norms over all GPUs. How
# many GPUs is not stated: 8 are assumed.
_base_ = ["../_base_/models/retinanet.py", "../_base_/schedules/1x_boxes.py"]
model = dict(
    backbone=dict(model="ravlt_t", map_norm=["identity", "layernorm", "layernorm", "layernorm"], drop_path_rate=0.1)
)
optim_wrapper = dict(type="AmpOptimWrapper", loss_scale=512.0)
sync_bn = "torch"
