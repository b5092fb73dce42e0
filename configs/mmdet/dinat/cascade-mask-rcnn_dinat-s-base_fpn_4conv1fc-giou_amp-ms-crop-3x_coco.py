# box AP 52.6, mask AP 45.3, 145 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./cascade-mask-rcnn_dinat-s-tiny_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_s_base", drop_path_rate=0.6))
optim_wrapper = dict(optimizer=dict(lr=0.000075))
