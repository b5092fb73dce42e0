# box AP 50.9 (arXiv:2411.07635). Weights: MIT.
_base_ = "./retinanet_ravlt-t_fpn_amp-1x_coco.py"
model = dict(backbone=dict(model="ravlt_l", drop_path_rate=0.55))
