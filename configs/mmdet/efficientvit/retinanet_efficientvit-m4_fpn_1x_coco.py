# box AP 32.7 (arXiv:2305.07027). Weights: MIT.
# Settings: github.com/microsoft/Cream, EfficientViT/downstream: batch norms as they are and tables of biases, which
# are not decayed. The pyramid makes stride 8 itself.
_base_ = ["../_base_/models/retinanet.py", "../_base_/schedules/1x_boxes.py"]
model = dict(
    backbone=dict(model="efficientvit_m4", strides=(16, 32, 64), norm_eval=True),
    neck=dict(type="mixzoo.FPN", num_finer=1, start_level=0),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05), paramwise_cfg=dict(custom_keys={".bias.table": dict(decay_mult=0.0)})
)
