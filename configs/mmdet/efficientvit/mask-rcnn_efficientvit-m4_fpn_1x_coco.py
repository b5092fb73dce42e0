# mask AP 31.0 (arXiv:2305.07027). Weights: MIT.
# Settings: github.com/microsoft/Cream, EfficientViT/downstream: batch norms as they are and tables of biases, which
# are not decayed. The pyramid makes strides 8 and 4 itself.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(
    backbone=dict(model="efficientvit_m4", strides=(16, 32, 64), norm_eval=True),
    neck=dict(type="mixzoo.FPN", num_finer=2),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.0001, weight_decay=0.05), paramwise_cfg=dict(custom_keys={".bias.table": dict(decay_mult=0.0)})
)
