"""The ops of the grammar whose shapes follow one rule a table: a name and its code a line (`grammar`)."""

POINTWISE = """
mul            {x} * 0.7
add            {x} + 0.3
relu           torch.relu({x})
exp            torch.exp({x}.clamp(max=4))
log            torch.log({x}.abs() + 0.1)
sqrt           torch.sqrt({x}.abs())
rsqrt          torch.rsqrt({x} * {x} + 1)
reciprocal     1 / ({x}.abs() + 0.5)
div            {x} / 3
square         {x} * {x}
cube           {x} ** 3
pow            torch.pow({x}.abs() + 0.5, 1.7)
sigmoid        torch.sigmoid({x})
tanh           torch.tanh({x})
silu           F.silu({x})
gelu           F.gelu({x})
gelu_tanh      F.gelu({x}, approximate="tanh")
softplus       F.softplus({x})
elu            F.elu({x})
selu           F.selu({x})
celu           F.celu({x}, alpha=0.7)
leaky_relu     F.leaky_relu({x}, 0.1)
hardswish      F.hardswish({x})
hardsigmoid    F.hardsigmoid({x})
hardtanh       F.hardtanh({x}, -2, 2)
mish           F.mish({x})
softsign       F.softsign({x})
logsigmoid     F.logsigmoid({x})
tanhshrink     F.tanhshrink({x})
softshrink     F.softshrink({x}, 0.3)
threshold      F.threshold({x}, 0.1, -1.0)
erf            torch.erf({x})
erfc           torch.erfc({x})
erfinv         torch.erfinv({x}.clamp(-0.9, 0.9))
sin            torch.sin({x})
cos            torch.cos({x})
tan            torch.tan({x}.clamp(-1, 1))
asin           torch.asin({x}.clamp(-1, 1))
acos           torch.acos({x}.clamp(-1, 1))
atan           torch.atan({x})
sinh           torch.sinh({x}.clamp(-3, 3))
cosh           torch.cosh({x}.clamp(-3, 3))
asinh          torch.asinh({x})
acosh          torch.acosh({x}.abs() + 1)
atanh          torch.atanh({x}.clamp(-0.9, 0.9))
log1p          torch.log1p({x}.abs())
log2           torch.log2({x}.abs() + 0.1)
log10          torch.log10({x}.abs() + 0.1)
exp2           torch.exp2({x}.clamp(max=4))
expm1          torch.expm1({x}.clamp(max=4))
lgamma         torch.lgamma({x}.abs() + 0.5)
digamma        torch.digamma({x}.abs() + 0.5)
atan2          torch.atan2({x}, {x} * 2 + 0.3)
hypot          torch.hypot({x}, {x} + 1)
logaddexp      torch.logaddexp({x}, 1 - {x})
xlogy          torch.xlogy({x}, {x}.abs() + 0.2)
sinc           torch.sinc({x})
logit          torch.logit(torch.sigmoid({x}), eps=0.01)
fmod           torch.fmod({x}, 1.5)
remainder      torch.remainder({x}, 1.5)
floor          torch.floor({x} * 4) / 4
round_decimals torch.round({x}, decimals=1)
round          torch.round({x} * 4) / 4
trunc          torch.trunc({x})
frac           torch.frac({x})
sign           torch.sign({x}) * {x}
abs            {x}.abs()
neg            -{x}
clamp          {x}.clamp(-1, 2)
where          torch.where({x} > 0, {x}, 0.1 * {x})
masked_fill    {x}.masked_fill({x} > 1, 0.0)
nan_to_num     torch.nan_to_num({x})
lerp           torch.lerp({x}, {x} * {x}, 0.3)
addcmul        torch.addcmul({x}, {x}, {x}, value=0.5)
addcdiv        torch.addcdiv({x}, {x}, {x}.abs() + 1, value=0.5)
copysign       torch.copysign({x}, {x} - 0.5)
in_place       {x}.clone().mul_(1.5).add_(0.1)
contiguous     {x}.contiguous()
heaviside      torch.heaviside({x}, {x} * 0.5)
floor_divide   {x} // 0.3
gcd_of_ids     torch.gcd(ids({x}, 12), ids({x}, 8)).to({x}.dtype) + {x}
"""
"""The shape stays."""

ALONG = """
softmax        {x}.softmax({d})
log_softmax    {x}.log_softmax({d})
softmin        F.softmin({x}, {d})
normalize      F.normalize({x}, dim={d})
normalize_1    F.normalize({x}, p=1, dim={d})
center         {x} - {x}.mean({d}, keepdim=True)
standardize    ({x} - {x}.mean({d}, keepdim=True)) / ({x}.var({d}, keepdim=True, correction=0) + 1e-5).sqrt()
rms            {x} * torch.rsqrt({x}.pow(2).mean({d}, keepdim=True) + 1e-5)
sum_to_one     {x} / ({x}.abs().sum({d}, keepdim=True) + 1)
cumsum         {x}.cumsum({d})
cumprod        {x}.clamp(-1.5, 1.5).cumprod({d})
logcumsumexp   {x}.logcumsumexp({d})
cummax         {x}.cummax({d}).values
sort           {x}.sort({d}).values
argsort        {x}.argsort(dim={d}, stable=True).to({x}.dtype) * {x}
flip           {x}.flip({d})
roll           {x}.roll({k}, {d})
gather         {x}.gather({d}, ids({x}, {size}))
index_select   {x}.index_select({d}, torch.arange({size}).flip(0))
scatter_add    torch.zeros_like({x}).scatter_add({d}, ids({x}, {size}), {x})
scatter_mean   torch.zeros_like({x}).scatter_reduce({d}, ids({x}, {size}), {x}, "mean")
scatter_amax   {x}.scatter_reduce({d}, ids({x}, {size}), {x}, "amax", include_self=True)
index_add      torch.zeros_like({x}).index_add({d}, torch.arange({size}) // 2, {x})
index_copy     {x}.index_copy({d}, torch.arange({size}).flip(0), {x})
index_fill     {x}.index_fill({d}, torch.zeros(1, dtype=torch.long), 0.5)
halves         torch.cat({x}.tensor_split(2, {d})[::-1], {d})
"""
"""Something happens along a dimension without batch, and the shape stays."""

REDUCED = """
sum            {x}.sum({d})
mean           {x}.mean({d})
amax           {x}.amax({d})
amin           {x}.amin({d})
max            {x}.max({d}).values
var            {x}.var({d}, correction=0)
std            ({x}.var({d}, correction=0) + 1e-3).sqrt()
std_mean       sum(torch.std_mean({x}, {d}, correction=0))
logsumexp      {x}.logsumexp({d})
prod           {x}.clamp(-1.5, 1.5).prod({d})
norm           {x}.norm(dim={d})
norm_1         {x}.norm(p=1, dim={d})
norm_inf       {x}.norm(p=float("inf"), dim={d})
norm_3         {x}.norm(p=3, dim={d})
argmax         {x}.argmax({d}).to({x}.dtype) * 0.1
count          ({x} > 0).sum({d}).to({x}.dtype)
any            ({x} > 1).any({d}).to({x}.dtype)
median         {x}.median({d}).values
kthvalue       {x}.kthvalue(1, {d}).values
nansum         torch.where({x} > 2, float("nan"), {x}).nansum({d})
nanmean        torch.where({x} > 2, float("nan"), {x}).nanmean({d})
select         {x}.select({d}, -1)
cosine         F.cosine_similarity({x}, {x}.flip({d}) + 1, {d})
mode           torch.round({x}).mode({d}).values
einsum_sum     ({x} * {x}).sum({d}) / {size}
trapezoid      torch.trapezoid({x}, dim={d})
"""
"""A dimension without batch disappears."""

BINARY = """
add_y          {x} + {y}
mul_y          {x} * {y}
sub_y          {y} - {x}
div_y          {x} / ({y}.abs() + 0.5)
maximum        torch.maximum({x}, {y})
where_y        torch.where({y} > 0, {x}, {y})
lerp_y         torch.lerp({x}, {y}, 0.25)
gate           {x} * torch.sigmoid({y})
atan2_y        torch.atan2({x}, {y})
fmin           torch.fmin({x}, {y})
"""
"""An earlier value comes in, broadcast."""

ROUGH = frozenset(
    """
    floor round trunc frac sign argmax argsort gather scatter_add scatter_mean scatter_amax heaviside
    floor_divide gcd_of_ids nansum nanmean any count mode bucketize fmod remainder masked_fill embedding bag
    bag_sum one_hot round_decimals attention_mask median kthvalue where_y threshold to_bf16 to_fp16
    to_fp32 copysign atan2_y erf
    """.split()
)
"""Ops that may turn a rounding into a large difference, or that round on purpose: no use against float64.

erf is that of compiled PyTorch, off by up to 5e-7 wherever it is: near 0 that is far from float64."""
