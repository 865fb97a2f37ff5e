import torch, vismoe
def test_a():
    m=vismoe.MoE(vismoe.TopKRouter(16,4,k=2,capacity_factor=1.0,noise_std=1.0,balance="loss"),vismoe.MLPExperts(16,32,4))
    with vismoe.record(m) as r:
        y=m(torch.randn(2,3,16))
    (y.sum()+r.auxiliary_loss).backward()
def test_b():
    m=vismoe.MoE(vismoe.TopKRouter(16,4,k=2),vismoe.MLPExperts(16,32,4))
    m(torch.randn(2,3,16)).sum().backward()
