# No published figure at hand (arXiv:2507.00698). Weights: no licence stated.
# Settings: github.com/qhfan/MALA: a layer norm for every map, batch norms over all GPUs. How many GPUs is not stated:
# 8 are assumed.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/80k.py"]
model = dict(backbone=dict(model="mavit_t", map_norm="layernorm", drop_path_rate=0.1))
sync_bn = "torch"
