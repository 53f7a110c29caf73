package org.lora4j.model;

import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.StringTensorDict;
import org.bytedeco.pytorch.StringTensorDictItem;
import org.bytedeco.pytorch.Tensor;

/** The parameters of a module tree by dotted path. */
final class Parameters {
    private Parameters() {}

    /** All buffers, likewise. */
    static Map<String, Tensor> buffers(Module root) {
        return map(root.named_buffers());
    }

    /** All parameters, in the order of registration; one registered twice appears under both names. */
    static Map<String, Tensor> of(Module root) {
        return map(root.named_parameters());
    }

    private static Map<String, Tensor> map(StringTensorDict named) {
        Map<String, Tensor> parameters = new LinkedHashMap<>();
        for (long i = 0; i < named.size(); i++) {
            StringTensorDictItem item = named.get(i);
            parameters.put(item.key().getString(), new Tensor(item.access()));
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
