# box AP 39.0, mask AP 35.9 (arXiv:2401.16456). Weights: MIT.
# Settings: github.com/ysj9909/SHViT, downstream: batch norms as they are. The pyramid makes strides 8 and 4 itself.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(
    backbone=dict(model="shvit_s4", strides=(16, 32, 64), norm_eval=True), neck=dict(type="mixzoo.FPN", num_finer=2)
)
optim_wrapper = dict(optimizer=dict(lr=0.0001, weight_decay=0.05))
