//go:build tools

// Package tools pins the programs that the recordings are made with.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kubelet"
)
