// The largest logit of each row as an operation: what a greedy choice needs, found where the logits have just been made.

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>

#include "extension.hpp"

namespace {

// Columns that a thread takes at a time.
constexpr std::size_t kPart = 8192;
constexpr std::size_t kLanes = 16;

struct Best {
    float value;
    std::size_t column;
};

// The first of the largest; the first that is no number, if any is none.
Best best_of(const float* x, std::size_t count) {
    float most[kLanes];
    std::uint32_t odd[kLanes] = {};
    std::fill(most, most + kLanes, -std::numeric_limits<float>::infinity());
    const std::size_t whole = count / kLanes * kLanes;
    for (std::size_t k = 0; k < whole; k += kLanes) {
        for (std::size_t i = 0; i < kLanes; ++i) {
            most[i] = x[k + i] > most[i] ? x[k + i] : most[i];
            odd[i] |= x[k + i] != x[k + i];
        }
    }
    for (std::size_t k = whole; k < count; ++k) {
        most[0] = x[k] > most[0] ? x[k] : most[0];
        odd[0] |= x[k] != x[k];
    }
    const bool is_odd = std::any_of(odd, odd + kLanes, [](std::uint32_t each) { return each; });
    const float value = *std::max_element(most, most + kLanes);
    const float* found = is_odd ? std::find_if(x, x + count, [](float each) { return each != each; })
                                : std::find(x, x + count, value);
    return {*found, static_cast<std::size_t>(found - x)};
}

// x float32 [rows, columns] → the column of each row's largest, int32 [rows], and its value, float32 [rows].
class BestToken : public ov::op::Op {
public:
    OPENVINO_OP("BestToken", "shardyard");

    BestToken() = default;
    explicit BestToken(const ov::Output<ov::Node>& x) : Op({x}) { constructor_validate_and_infer_types(); }

    void validate_and_infer_types() override {
        const ov::PartialShape rows{get_input_partial_shape(0)[0]};
        set_output_type(0, ov::element::i32, rows);
        set_output_type(1, ov::element::f32, rows);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<BestToken>(inputs.at(0));
    }

    bool visit_attributes(ov::AttributeVisitor&) override { return true; }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const std::size_t rows = inputs[0].get_shape()[0], columns = inputs[0].get_shape()[1];
        outputs[0].set_shape({rows});
        outputs[1].set_shape({rows});
        const std::size_t parts = (columns + kPart - 1) / kPart;
        const auto* x = inputs[0].data<const float>();
        std::vector<Best> found(rows * parts);
        tbb::parallel_for(tbb::blocked_range<std::size_t>(0, found.size()), [&](const auto& range) {
            for (std::size_t index = range.begin(); index < range.end(); ++index) {
                const std::size_t row = index / parts, first = index % parts * kPart;
                found[index] = best_of(x + row * columns + first, std::min(kPart, columns - first));
                found[index].column += first;
            }
        });
        for (std::size_t row = 0; row < rows; ++row) {
            Best best = found[row * parts];
            for (std::size_t part = 1; part < parts && best.value == best.value; ++part) {
                const Best& next = found[row * parts + part];
                if (next.value > best.value || next.value != next.value) best = next;
            }
            outputs[0].data<std::int32_t>()[row] = static_cast<std::int32_t>(best.column);
            outputs[1].data<float>()[row] = best.value;
        }
        return true;
    }
};

}  // namespace

ov::Extension::Ptr shardyard::best_token_extension() { return std::make_shared<ov::OpExtension<BestToken>>(); }
