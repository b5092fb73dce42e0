# mIoU 48.08, 81 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./upernet_agent-swin-tiny_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(model="agent_swin_small", mixer_options=[dict(pooled=(9, 9)), dict(pooled=(12, 12)), None, None])
)
