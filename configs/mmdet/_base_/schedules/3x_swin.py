# As 1x_ms-crop_swin.py for 36 epochs: rate / 10 after epochs 27 and 33.
_base_ = "./1x_ms-crop_swin.py"
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
