package org.lora4j.train;

import java.util.List;
import org.bytedeco.pytorch.Tensor;

/** The processes that train together. */
interface World extends AutoCloseable {
    /** One process alone. */
    World ALONE = new World() {
        @Override
        public int rank() {
            return 0;
        }

        @Override
        public int size() {
            return 1;
        }

        @Override
        public void sum(List<Tensor> tensors) {}

        @Override
        public void close() {}
    };

    int rank();

    int size();

    /**
     * Replaces each tensor by the sum of those of all processes.
     *
     * @throws IllegalStateException if another process is gone
     */
    void sum(List<Tensor> tensors);

    @Override
    void close();
}
