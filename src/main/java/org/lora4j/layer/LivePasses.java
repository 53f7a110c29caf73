package org.lora4j.layer;

import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Iterator;

/**
 * The fused passes whose autograd graph may still run. LibTorch does not tell Java when a graph is freed, so each pass is
 * asked: those whose graph is gone free their activations.
 *
 * <p>A pass whose backward has run is asked when the next one runs or begins, so activations go away layer by layer during a
 * backward pass. The others, of graphs dropped without one, are asked when their number has doubled, and by {@link #release}.
 */
public final class LivePasses {
    private static final int FIRST_SWEEP = 64;

    private static final Deque<FusedPass> PENDING = new ArrayDeque<>();
    private static final Deque<FusedPass> RUN = new ArrayDeque<>();
    private static int nextSweep = FIRST_SWEEP;

    private LivePasses() {}

    static synchronized void add(FusedPass pass) {
        sweep(RUN);
        if (PENDING.size() >= nextSweep) {
            sweep(PENDING);
            nextSweep = Math.max(FIRST_SWEEP, 2 * PENDING.size());
        }
        PENDING.add(pass);
    }

    /** Notes that a pass's backward has run; it is freed once its graph is. */
    static synchronized void hasRun(FusedPass pass) {
        sweep(RUN);
        // Not by equals(), which compares the addresses of C++ objects: a new one may be where a freed one was.
        for (Iterator<FusedPass> each = PENDING.descendingIterator(); each.hasNext(); ) {
            if (each.next() == pass) {
                each.remove();
                RUN.add(pass);
                return;
            }
        }
    }

    /** Frees the activations of all passes whose graph is gone: worth calling at the end of a step. */
    public static synchronized void release() {
        sweep(RUN);
        sweep(PENDING);
    }

    /** How many passes hold activations. */
    static synchronized int count() {
        return PENDING.size() + RUN.size();
    }

    private static void sweep(Deque<FusedPass> passes) {
        for (Iterator<FusedPass> each = passes.iterator(); each.hasNext(); ) {
            FusedPass pass = each.next();
            if (!pass.graphLives()) {
                pass.free();
                each.remove();
            }
        }
    }
}
