//! Single decisions, compared with the kubelet's values (`pkg/kubelet/kuberuntime`, `pkg/kubelet/status`).

mod case;
mod ephemeral;
mod past;
mod resize;
mod starts;
mod status;
mod stops;
