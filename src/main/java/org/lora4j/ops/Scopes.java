package org.lora4j.ops;

import java.util.Iterator;
import java.util.function.Supplier;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;

/** Frees intermediate results at once instead of at the end of the caller's {@code PointerScope}. */
public final class Scopes {
    private Scopes() {}

    /**
     * Computes a tensor in a scope of its own, which frees everything else that was made meanwhile.
     *
     * @return the tensor, in the caller's scope if there is one
     */
    public static Tensor within(Supplier<Tensor> computation) {
        try (PointerScope scope = new PointerScope()) {
            return leave(scope, computation.get());
        }
    }

    /** Moves a handle made in the innermost scope to the one around it, or to no scope if there is none. */
    static <P extends Pointer> P leave(PointerScope innermost, P handle) {
        handle.retainReference();
        innermost.detach(handle);
        Iterator<PointerScope> scopes = PointerScope.getScopeIterator();
        scopes.next();
        if (scopes.hasNext()) {
            scopes.next().attach(handle);
            handle.releaseReference();
        }
        return handle;
    }
}
