"""Kinds of broken plugins: the code of each, and what its message must say."""

from __future__ import annotations

from support.packages import HOOKIMPL, registers

MADE = "@dataclass\nclass Bad(Method):\n    def part(self, site): ...\n    def __post_init__(self): "
METHOD = "from dataclasses import dataclass\nfrom mtpeft.api import Balancer, Method\n"


def gives(expression: str, body: str = "return") -> str:
    return f"{HOOKIMPL}@hookimpl\ndef register_methods():\n    {body} {expression}\n"


AT_IMPORT = {
    "a missing module": ("import nonsense_package", "ModuleNotFoundError: No module named 'nonsense_package'"),
    "an exception": ("raise ValueError('no luck')", "ValueError: no luck"),
    "SystemExit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt('mine')", "KeyboardInterrupt: mine"),
    "GeneratorExit": ("raise GeneratorExit", "GeneratorExit"),
    "CancelledError": ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    "a BaseException of its own": ("class Mine(BaseException): ...\nraise Mine('so')", "Mine: so"),
    "MemoryError": ("raise MemoryError", "MemoryError"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "a syntax error": ("def broken(:", "SyntaxError"),
    "a null byte": ("x = 1\0", "SyntaxError"),
    "a message that raises": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        "Odd: (its message cannot be shown)",
    ),
    "a message with escapes": ("raise ValueError('\\x1b[2Jgone')", "ValueError: \\x1b[2Jgone"),
    "a module that takes itself away": ("import sys\nsys.modules[__name__] = None", "it implements no hook"),
    "a module whose attributes raise": (
        "import sys\nclass Odd:\n    @property\n    def mtpeft_api(self): raise ValueError('odd')\n"
        "sys.modules[__name__] = Odd()",
        "ValueError: odd",
    ),
    "a module that cannot be listed": (
        "import sys\nclass Odd:\n    def __dir__(self): raise SystemExit(4)\nsys.modules[__name__] = Odd()",
        "SystemExit: 4",
    ),
    "an empty module": ("", "it implements no hook"),
    "a hook that is not marked": ("def register_methods(): return {}", "its register_methods is not marked"),
    "an API version in words": ("mtpeft_api = 'newest'", "it is built for plugin API newest"),
    "a hook with arguments that there are not": (
        registers("methods", bad="mtpeft_plugins.partial.lora:Lora") + "@hookimpl\ndef step_ended(stepp): ...",
        "PluginValidationError",
    ),
    "a hook that asks for arguments": (f"{HOOKIMPL}@hookimpl\ndef register_methods(app): ...", "PluginValidationError"),
}
AT_REGISTRATION = {
    "an exception": (gives("1 / 0"), "register_methods: ZeroDivisionError"),
    "KeyboardInterrupt": (gives("KeyboardInterrupt", "raise"), "register_methods: KeyboardInterrupt"),
    "SystemExit": (gives("SystemExit(1)", "raise"), "register_methods: SystemExit: 1"),
    "GeneratorExit": (gives("GeneratorExit", "raise"), "register_methods: GeneratorExit"),
    "None": (gives("None"), "register_methods: TypeError: it returned NoneType"),
    "a list": (gives("['bad']"), "register_methods: TypeError: it returned list"),
    "a text": (gives("'bad'"), "register_methods: TypeError: it returned str"),
    "a number": (gives("7"), "register_methods: TypeError: it returned int"),
    "a generator": (gives("{}", "yield"), "register_methods: TypeError: it returned generator"),
    "a mapping that raises": (
        "import collections\nclass Odd(collections.UserDict):\n    def __iter__(self): raise OSError('gone')\n"
        + gives("Odd(a=1)"),
        "register_methods: OSError: gone",
    ),
    "an id that is a number": (gives("{3: 'a:B'}"), "register_methods: 3 is no id"),
    "an id that is None": (gives("{None: 'a:B'}"), "register_methods: None is no id"),
    "an id that is bytes": (gives("{b'bad': 'a:B'}"), "register_methods: b'bad' is no id"),
    "an empty id": (gives("{'': 'a:B'}"), "register_methods: '' is no id"),
    "an id with spaces": (gives("{'my own': 'a:B'}"), "register_methods: 'my own' is no id"),
    "an id with escapes": (gives("{'\\x1b[2J': 'a:B'}"), "register_methods: '\\x1b[2J' is no id"),
    "no reference": (gives("{'bad': None}"), 'register_methods: the id "bad" leads to None'),
    "a reference without a colon": (gives("{'bad': 'module.Class'}"), "the id \"bad\" leads to 'module.Class'"),
    "a reference without a class": (gives("{'bad': 'module:'}"), "the id \"bad\" leads to 'module:'"),
    "a reference that is code": (gives("{'bad': 'os:system(1)'}"), "the id \"bad\" leads to 'os:system(1)'"),
    "a relative reference": (gives("{'bad': '.module:Class'}"), "the id \"bad\" leads to '.module:Class'"),
    "a class in place of a reference": (gives("{'bad': dict}"), "the id \"bad\" leads to <class 'dict'>"),
}
WHEN_USED = {
    "a missing module": ("import nonsense_package", "ModuleNotFoundError"),
    "a missing class": ("", "AttributeError"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "SystemExit": ("raise SystemExit(0)", "SystemExit: 0"),
    "GeneratorExit": ("raise GeneratorExit", "GeneratorExit"),
    "a function": ("def Bad(): ...", "it is a function, and no class"),
    "a number": ("Bad = 3", "it is a int, and no class"),
    "a class of another kind": (
        f"{METHOD}@dataclass\nclass Bad(Balancer):\n    def combine(self, losses): ...",
        "it does not derive from mtpeft.api.Method",
    ),
    "a class of no kind": ("class Bad: ...", "it does not derive from mtpeft.api.Method"),
    "no dataclass": (
        f"{METHOD}class Bad(Method):\n    rank: int = 4\n    def part(self, site): ...",
        "it has fields but is no dataclass",
    ),
    "an abstract class": (f"{METHOD}@dataclass\nclass Bad(Method): ...", "it is abstract: part undefined"),
    "a class that raises when it is made": (
        f"{METHOD}{MADE}1 / 0",
        "ZeroDivisionError",
    ),
    "a class that leaves when it is made": (
        f"{METHOD}{MADE}raise SystemExit",
        "SystemExit",
    ),
}
CHANGES = {
    "torch.set_default_dtype(torch.float64)": "torch's default dtype",
    "torch.set_default_device('meta')": "torch's default device",
    "torch.set_grad_enabled(False)": "torch's grad mode",
    "torch.manual_seed(41)": "torch's random state",
    "torch.use_deterministic_algorithms(True)": "torch's deterministic mode",
    "torch.set_float32_matmul_precision('medium')": "torch's matmul precision",
    "torch.set_num_threads(torch.get_num_threads() + 1)": "torch's number of threads",
    "numpy.random.seed(41)": "NumPy's random state",
    "random.seed(41)": "Python's random state",
    "os.chdir('/')": "the working directory",
    "signal.signal(signal.SIGINT, signal.SIG_IGN)": "signal handlers",
    "signal.signal(signal.SIGTERM, lambda *a: None)": "signal handlers",
    "sys.path.insert(0, '/nonsense')": "sys.path",
    "warnings.simplefilter('ignore')": "warning filters",
    "os.environ['CUDA_VISIBLE_DEVICES'] = '7'": "environment variables",
    "del os.environ['PATH']": "environment variables",
    "logging.basicConfig(level=1, force=True)": "logging's root handlers",
    "sys.excepthook = print": "sys.excepthook",
}
BROKEN = {f"{name} when imported": pair for name, pair in AT_IMPORT.items()} | {
    f"{name} when registered": pair for name, pair in AT_REGISTRATION.items()
}
