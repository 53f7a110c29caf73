package org.lora4j.model;

import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.StringTensorDictItemVector;
import org.bytedeco.pytorch.Tensor;

/** The parameters of a module tree by dotted path. */
final class Parameters {
    private Parameters() {}

    /** All parameters, in the order of registration; one registered twice appears under both names. */
    static Map<String, Tensor> of(Module root) {
        StringTensorDictItemVector items = root.named_parameters().items();
        Map<String, Tensor> parameters = new LinkedHashMap<>();
        for (long i = 0; i < items.size(); i++) {
            parameters.put(
                    items.get(i).key().getString(), new Tensor(items.get(i).value()));
        }
        return parameters;
    }

    /** The numbers in a model; memory that two parameters share counts once. */
    static long count(Module root) {
        Map<Long, Long> sizes = new LinkedHashMap<>();
        of(root).values().forEach(p -> sizes.put(p.data_ptr().address(), p.numel()));
        return sizes.values().stream().mapToLong(Long::longValue).sum();
    }
}
