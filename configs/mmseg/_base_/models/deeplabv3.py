# DeepLabv3 (arXiv:1706.05587) for the 150 classes of ADE20K, on the last map alone.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/models/deeplabv3_r50-d8.py"
model = dict(
    type="mixzoo.Model",
    of="EncoderDecoder",
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type="mixzoo.Backbone"),
    decode_head=dict(in_index=-1, channels=256, dilations=(1, 6, 12, 18), num_classes=150),
    auxiliary_head=None,
)
