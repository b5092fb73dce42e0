# UPerNet (arXiv:1807.10221) for the 150 classes of ADE20K, with an auxiliary head on the third map.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/models/upernet_r50.py"
model = dict(
    type="mixzoo.Model",
    of="EncoderDecoder",
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type="mixzoo.Backbone"),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
