# UPerNet as in Swin (arXiv:2103.14030): 160,000 steps of AdamW that decays neither norms nor tables of biases, a rate
# that falls linearly, 1,500 steps of warm-up.
_base_ = [f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/schedules/schedule_160k.py", "../runtime.py"]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=0.00006, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), ".bias.table": dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=160000, by_epoch=False),
]
