package org.lora4j.train;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.layer.Adapter;

/**
 * Parameters with a learning rate of their own.
 *
 * @param parameters leaves of the autograd graph
 * @param rate what the learning rate is multiplied by
 * @param decays whether weight decay applies
 */
record ParameterGroup(List<Tensor> parameters, double rate, boolean decays) {
    ParameterGroup {
        parameters = List.copyOf(parameters);
    }

    /**
     * LoRA+ (arXiv:2402.12354) as in PEFT: B, biases and magnitudes learn {@code ratio} times as fast as the rest. Vectors do
     * not decay.
     */
    static List<ParameterGroup> of(List<Adapter> adapters, double ratio) {
        List<Tensor> plain = new ArrayList<>();
        List<Tensor> fast = new ArrayList<>();
        List<Tensor> vectors = new ArrayList<>();
        for (Adapter adapter : adapters) {
            List<Tensor> factorsB = new ArrayList<>();
            adapter.weights().values().forEach(each -> factorsB.add(each.b()));
            for (Tensor parameter : adapter.parameters()) {
                boolean isB = factorsB.stream().anyMatch(b -> b.is_same(parameter));
                (parameter.dim() == 1 ? vectors : isB ? fast : plain).add(parameter);
            }
        }
        List<ParameterGroup> groups = new ArrayList<>();
        groups.add(new ParameterGroup(plain, 1, true));
        groups.add(new ParameterGroup(fast, ratio, true));
        groups.add(new ParameterGroup(vectors, ratio, false));
        groups.removeIf(group -> group.parameters().isEmpty());
        return groups;
    }
}
