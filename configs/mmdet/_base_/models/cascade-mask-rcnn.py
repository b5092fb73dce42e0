# Cascade Mask R-CNN (arXiv:1712.00726) with heads of four convolutions and a linear layer, and the GIoU loss.
_base_ = "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py"
model = dict(
    type="mixzoo.Model",
    of="CascadeRCNN",
    backbone=dict(_delete_=True, type="mixzoo.Backbone"),
    roi_head=dict(
        bbox_head=[
            dict(
                type="ConvFCBBoxHead",
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[xy, xy, wh, wh]),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type="SyncBN", requires_grad=True),
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
            )
            for xy, wh in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
        ]
    ),
)
