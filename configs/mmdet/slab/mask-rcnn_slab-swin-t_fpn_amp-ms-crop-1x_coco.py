# No published figure at hand (arXiv:2405.11582). Weights: no licence stated.
# Settings: github.com/xinghaochen/SLAB, a layer norm for every map, batch norms as they are; figures are in a plot
# only. Differs: there linear attention runs in windows of 7 as well, here on the whole map.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x_ms-crop_swin.py"]
model = dict(backbone=dict(model="slab_swin_t", map_norm="layernorm_1e-5", norm_eval=True, drop_path_rate=0.1))
optim_wrapper = dict(type="AmpOptimWrapper")
