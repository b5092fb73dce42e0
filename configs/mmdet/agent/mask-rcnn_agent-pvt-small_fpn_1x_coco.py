# box AP 44.5, mask AP 41.2, 40 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./mask-rcnn_agent-pvt-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="agent_pvt_small", drop_path_rate=0.2))
