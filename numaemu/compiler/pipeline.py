"""How Numba compiles the package's functions: as it does by default, without what they have no use for.

It looks for closures, `with`, loops over tuples of several types, expressions of whole arrays and more, in every function again; those
of the package have none, and one that had would be refused. It makes machine code of each function as soon as it is compiled, and puts
it into this process; of those that are inlined nobody calls that, and of those of the image nobody does here. It compiles a function anew
for each constant that a call passes. And it optimises each function by itself before all that this one inlines is optimised with it.
Together that is a third of the time.
"""

from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import (
    InlineOverloads,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    RewriteDynamicRaises,
    TranslateByteCode,
)

_BEFORE_LLVM = (
    TranslateByteCode,
    FixupArgs,
    IRProcessing,
    DeadBranchPrune,
    GenericRewrites,
    RewriteDynamicRaises,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    InlineOverloads,
    IRLegalization,
)


class Optimised(JITCodeLibrary):
    """What LLVM has made of a function, optimised once: with all that it inlines, which is more than each part before and the whole."""

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout


class NotLoaded(Optimised):
    """What LLVM has made of a function, for those that inline it and for the image: no machine code in this process."""

    def _finalize_final_module(self):
        self._finalized = True

    def machine_code(self):
        """An object file."""
        with global_compiler_lock:
            self._ensure_finalized()
        return self._codegen._tm.emit_object(self._final_module)


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerWithoutLoading(NativeLowering):
    """Numba's lowering into a NotLoaded."""

    _name = "lower_without_loading"

    def run_pass(self, state):
        """Without a function that Python could call."""
        state.library = NotLoaded(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        function = [].append  # stands for what Python would call, which nobody does: a builtin function, and another one each time
        state.targetctx.insert_user_function(function, state.cr.fndesc, [state.library])
        state["cr"] = state.cr._replace(cfunc=function)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class LowerOptimised(NativeLowering):
    """Numba's lowering into an Optimised."""

    _name = "lower_optimised"

    def run_pass(self, state):
        """As Numba's, which begins with such a library if there is none."""
        state.library = Optimised(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return super().run_pass(state)


class Short(CompilerBase):
    """Numba's compiler, with the passes that functions of the package need."""

    lowering = LowerOptimised

    def define_pipelines(self):
        """What a compilation does, in this order."""
        passes = PassManager("nopython")
        for each in (*_BEFORE_LLVM, self.lowering, NoPythonBackend):
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class WithoutLoading(Short):
    """The same for functions that are not called in this process."""

    lowering = LowerWithoutLoading


def for_any_number(dispatcher):
    """Let a function that is called with a number that is known be compiled as for any other number: LLVM sees it where it inlines."""
    template = dispatcher.get_call_template

    def get_call_template(args, kws):
        return template(tuple(map(_any, args)), {name: _any(value) for name, value in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def _any(typ):
    return types.unliteral(typ) if isinstance(typ, types.IntegerLiteral) else typ
