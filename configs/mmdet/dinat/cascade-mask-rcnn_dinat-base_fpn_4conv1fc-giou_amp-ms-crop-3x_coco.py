# box AP 53.4, mask AP 46.2, 147 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./cascade-mask-rcnn_dinat-mini_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_base", drop_path_rate=0.6))
optim_wrapper = dict(optimizer=dict(lr=0.000075))
