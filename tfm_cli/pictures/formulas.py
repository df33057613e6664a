"""The formulas of the paper in MathML, which browsers show without a library, and in Unicode."""

from tfm_cli.pictures.page import Formula

_BLOCK = '<math display="block">{}</math>'


def _formula(text: str, mathml: str) -> Formula:
    return Formula(text, _BLOCK.format(mathml))


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _name(text: str) -> str:
    return f"<mi>{text}</mi>"


def _words(text: str) -> str:
    return f"<mtext>{text}</mtext>"


def _sign(text: str) -> str:
    return f"<mo>{text}</mo>"


def _sub(base: str, index: str) -> str:
    return f"<msub>{base}{index}</msub>"


def _sup(base: str, exponent: str) -> str:
    return f"<msup>{base}{exponent}</msup>"


def _over(numerator: str, denominator: str) -> str:
    return f"<mfrac>{numerator}{denominator}</mfrac>"


def _in(*parts: str) -> str:
    return _row(_sign("("), *parts, _sign(")"))


_NEXT = '<mo>,</mo><mspace width="1.2em"/>'
_IF = "if\u00a0"
_I, _J, _T, _X = _name("i"), _name("j"), _name("t"), _name("x")
_D = _sub(_name("d"), _words("model"))
_DK = _sub(_name("d"), _name("k"))
_Q, _K, _V = _name("Q"), _name("K"), _name("V")
_WO = _sup(_name("W"), _name("O"))
_HEAD = _words("head")
_PRODUCT = _row(_Q, _sup(_K, _name("T")))
_SCALED = _over(_PRODUCT, _row(_sign("√"), _DK))

TOKENS = _formula(
    "x = (x₁, …, x_S), each x_i one of V tokens",
    _row(
        _X, _sign("="), _in(_sub(_X, "<mn>1</mn>"), _sign(","), _sign("…"), _sign(","),
                            _sub(_X, _name("S"))),
        _NEXT, _sub(_X, _I), _sign("∈"), _sign("{"), "<mn>0</mn>", _sign(","), _sign("…"),
        _sign(","), _name("V"), _sign("−"), "<mn>1</mn>", _sign("}"),
    ),
)  # fmt: skip


def _wave(function: str, column: str) -> str:
    angle = _over(_words("pos"), _sup("<mn>10000</mn>", _row("<mn>2</mn>", _I, _sign("/"), _D)))
    return _row(
        _sub(_words("PE"), _row(_words("pos"), _sign(","), column)), _sign("="), _name(function),
        _in(angle),
    )  # fmt: skip


POSITIONS = _formula(
    "PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), "
    "PE(pos, 2i + 1) = cos(pos / 10000^(2i / d_model))",
    f"<mtable><mtr><mtd>{_wave('sin', _row('<mn>2</mn>', _I))}</mtd></mtr><mtr><mtd>"
    f"{_wave('cos', _row('<mn>2</mn>', _I, _sign('+'), '<mn>1</mn>'))}</mtd></mtr></mtable>",
)
INPUT = _formula(
    "input = √d_model · E[x] + PE",
    _row(
        _words("input"), _sign("="), _sign("√"), _D, _sign("·"),
        _sub(_name("E"), _X), _sign("+"), _words("PE"),
    ),
)  # fmt: skip
ATTENTION = _formula(
    "Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V",
    _row(
        _words("Attention"), _in(_Q, _sign(","), _K, _sign(","), _V), _sign("="),
        _words("softmax"), _in(_SCALED), _V,
    ),
)  # fmt: skip
MASKED = _formula(
    "softmax(Q Kᵀ / √d_k + M) V, M_ij = 0 if j ≤ i, otherwise −∞",
    _row(
        _words("softmax"), _in(_SCALED, _sign("+"), _name("M")), _V, _NEXT,
        _sub(_name("M"), _row(_I, _J)), _sign("="),
        '<mrow><mo>{</mo><mtable columnalign="left"><mtr><mtd><mn>0</mn></mtd><mtd>'
        f"{_row(_words(_IF), _J, _sign('≤'), _I)}</mtd></mtr><mtr><mtd><mrow><mo>−</mo><mi>∞</mi>"
        "</mrow></mtd><mtd><mtext>otherwise</mtext></mtd></mtr></mtable></mrow>",
    ),
)  # fmt: skip
CROSS = _formula(
    "Q = Y W^Q of the decoder; K = M W^K, V = M W^V of the encoder's output M",
    _row(
        _Q, _sign("="), _name("Y"), _sup(_name("W"), _Q), _words("\u00a0of the decoder"), _NEXT,
        _K, _sign("="), _name("M"), _sup(_name("W"), _K), _NEXT,
        _V, _sign("="), _name("M"), _sup(_name("W"), _V), _words("\u00a0of the encoder’s output M"),
    ),
)  # fmt: skip


def _projected(base: str) -> str:
    return _row(base, f"<msubsup>{_name('W')}{_I}{base}</msubsup>")


MULTI_HEAD = _formula(
    "MultiHead(Q, K, V) = Concat(head₁, …, head_h) W^O, "
    "head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)",
    "<mtable columnalign=\"left\"><mtr><mtd>"
    + _row(
        _words("MultiHead"), _in(_Q, _sign(","), _K, _sign(","), _V), _sign("="), _words("Concat"),
        _in(_sub(_HEAD, "<mn>1</mn>"), _sign(","), _sign("…"), _sign(","), _sub(_HEAD, _name("h"))),
        _WO,
    )
    + "</mtd></mtr><mtr><mtd>"
    + _row(
        _sub(_HEAD, _I), _sign("="), _words("Attention"),
        _in(_projected(_Q), _sign(","), _projected(_K), _sign(","), _projected(_V)),
    )
    + "</mtd></mtr></mtable>",
)  # fmt: skip
_NORM = _row(
    _words("LayerNorm"), _in(_X), _sign("="), _name("g"), _sign("·"),
    _over(_row(_X, _sign("−"), _name("μ")), _name("σ")), _sign("+"), _name("b"),
)  # fmt: skip
_FFN = _row(
    _words("FFN"), _in(_X), _sign("="), _words("max"),
    _in("<mn>0</mn>", _sign(","), _X, _sub(_name("W"), "<mn>1</mn>"), _sign("+"),
        _sub(_name("b"), "<mn>1</mn>")),
    _sub(_name("W"), "<mn>2</mn>"), _sign("+"), _sub(_name("b"), "<mn>2</mn>"),
)  # fmt: skip
_POST = _row(_words("LayerNorm"), _in(_X, _sign("+"), _words("Sublayer"), _in(_X)))
_PRE = _row(_X, _sign("+"), _words("Sublayer"), _in(_words("LayerNorm"), _in(_X)))


_DEEPNORM = _row(
    _words("LayerNorm"), _in(_X, _sign("+"), _over(_row(_words("Sublayer"), _in(_X)), _name("α")))
)  # fmt: skip


def add_and_norm(norm: str, activation: str) -> Formula:
    """Return the formula of add & norm and of the feed-forward layer."""
    line, text = {
        "post": (_POST, "LayerNorm(x + Sublayer(x))"),
        "pre": (_PRE, "x + Sublayer(LayerNorm(x))"),
        "deepnorm": (_DEEPNORM, "LayerNorm(x + Sublayer(x) / α)"),
    }[norm]
    lines = [line, _NORM]
    text += ", LayerNorm(x) = g · (x − μ) / σ + b"
    if activation == "relu":
        lines.append(_FFN)
        text += ", FFN(x) = max(0, x W₁ + b₁) W₂ + b₂"
    table = "".join(f"<mtr><mtd>{line}</mtd></mtr>" for line in lines)
    return _formula(text, f'<mtable columnalign="left">{table}</mtable>')


_PREFIX = _row(_sub(_name("y"), _row(_sign("&lt;"), _T)), _sign(","), _X)
LENS = _formula(
    "P_l(y_t | y_<t, x) = softmax(h_l,t W_out), l = 1, …, N",
    _row(
        _sub(_name("P"), _name("l")),
        _in(_sub(_name("y"), _T), _sign("|"), _PREFIX), _sign("="), _words("softmax"),
        _in(_sub(_name("h"), _row(_name("l"), _sign(","), _T)), _sub(_name("W"), _words("out"))),
        _NEXT, _name("l"), _sign("="), "<mn>1</mn>", _sign(","), _sign("…"), _sign(","),
        _name("N"),
    ),
)  # fmt: skip
_SUM = f"<munderover><mo>∑</mo>{_row(_T, _sign('='), '<mn>1</mn>')}{_name('T')}</munderover>"
_LOG = _row(_words("ln\u00a0"), _name("P"), _in(_sub(_name("y"), _T), _sign("|"), _PREFIX))
LOSS = _formula(
    "loss = − Σ_t ln P(y_t | y_<t, x)", _row(_words("loss"), _sign("="), _sign("−"), _SUM, _LOG)
)
_T_TOKENS = _name("T")


def score(kind: str) -> Formula:
    """Return the formula of the score of a hypothesis, whose length norm is `power` or `wu`."""
    base, text = _T_TOKENS, "T"
    if kind == "wu":
        base, text = _in(_over(_row("<mn>5</mn>", _sign("+"), base), "<mn>6</mn>")), "((5 + T) / 6)"
    return _formula(
        f"score(y) = Σ_t ln P(y_t | y_<t, x) / {text}^α",
        _row(
            _words("score"), _in(_name("y")), _sign("="),
            _over(_row(_SUM, _LOG), _sup(base, _name("α"))),
        ),
    )  # fmt: skip
