# mIoU 47.9 (arXiv:2411.07635). Weights: MIT.
# Settings: github.com/qhfan/RALA: a layer norm for every map, batch norms over all GPUs. How many GPUs is not stated:
# 8 are assumed.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/80k.py"]
model = dict(backbone=dict(model="ravlt_t", map_norm="layernorm", drop_path_rate=0.1))
sync_bn = "torch"
