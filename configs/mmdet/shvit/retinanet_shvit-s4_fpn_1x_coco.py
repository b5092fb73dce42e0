# box AP 38.8 (arXiv:2401.16456). Weights: MIT.
# Settings: github.com/ysj9909/SHViT, downstream: batch norms as they are. The pyramid makes stride 8 itself.
_base_ = ["../_base_/models/retinanet.py", "../_base_/schedules/1x_boxes.py"]
model = dict(
    backbone=dict(model="shvit_s4", strides=(16, 32, 64), norm_eval=True),
    neck=dict(type="mixzoo.FPN", num_finer=1, start_level=0),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
