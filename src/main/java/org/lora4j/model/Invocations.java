package org.lora4j.model;

import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.WeakHashMap;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.Invocation;

/** Looks for the invocation tokens of a model's adapters in what it is about to work on. */
final class Invocations implements TokenSource.Listener {
    private static final LoraModel.Scope NOTHING = () -> {};

    private final ActiveAdapters active;
    private final AttachedAdapters adapters;
    /** What was found so far in sequences that go on. */
    private final Map<Object, Invocation> sequences = Collections.synchronizedMap(new WeakHashMap<>());

    Invocations(ActiveAdapters active, AttachedAdapters adapters) {
        this.active = active;
        this.adapters = adapters;
    }

    /** Holds what is found in the tokens, on this thread, until the scope is closed. */
    LoraModel.Scope open(Tensor inputIds) {
        return hold(new Invocation(tokens(), inputIds, null));
    }

    @Override
    public LoraModel.Scope begin(Tensor inputIds, @Nullable Object sequence, boolean first) {
        Collection<List<Integer>> tokens = tokens();
        if (tokens.isEmpty() || active.invocation() != null) {
            return NOTHING;
        }
        if (sequence == null) {
            return hold(new Invocation(tokens, inputIds, null));
        }
        Invocation found = new Invocation(tokens, inputIds, first ? null : sequences.get(sequence));
        sequences.put(sequence, found);
        return hold(found);
    }

    private LoraModel.Scope hold(Invocation found) {
        Invocation before = active.invocation();
        active.invocation(found);
        return () -> active.invocation(before);
    }

    private Collection<List<Integer>> tokens() {
        return adapters.values().stream()
                .map(adapter -> adapter.config().invocationTokens())
                .filter(tokens -> !tokens.isEmpty())
                .distinct()
                .toList();
    }
}
