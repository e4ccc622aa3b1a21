// Command endpoints writes the truth table of endpoint choice: random Services and EndpointSlices, and what kube-proxy's
// own trackers and CategorizeEndpoints make of them on one node.
//
// The cases are drawn from a fixed seed, so that two runs give the same file.
package main

import (
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math/rand"
	"os"
	"slices"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/proxy"
)

const node = "node-a"

var (
	nodes = []string{"node-a", "node-b", "node-c"}
	zones = []string{"zone-a", "zone-b", "zone-c"}
)

// One case: the object's fields that matter, and the choice for each port and family.
type testCase struct {
	Zone     string   `json:"zone"`
	Families []string `json:"families"`
	Internal bool     `json:"internal_local"`
	External bool     `json:"external_local"`
	Ports    []port   `json:"ports"`
	Slices   []slice  `json:"slices"`
	Choices  []choice `json:"choices"`
}

type port struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     int32  `json:"port"`
	NodePort int32  `json:"node_port,omitempty"`
}

type slice struct {
	V6        bool       `json:"v6,omitempty"`
	Ports     []port     `json:"ports"`
	Endpoints []endpoint `json:"endpoints"`
}

type endpoint struct {
	Address     string   `json:"a"`
	Ready       *bool    `json:"r,omitempty"`
	Serving     *bool    `json:"s,omitempty"`
	Terminating *bool    `json:"t,omitempty"`
	Node        *string  `json:"n,omitempty"`
	ZoneHints   []string `json:"zh,omitempty"`
	NodeHints   []string `json:"nh,omitempty"`
}

type choice struct {
	V6       bool     `json:"v6,omitempty"`
	Port     string   `json:"port"`
	Protocol string   `json:"protocol"`
	Cluster  []string `json:"cluster"`
	Local    []string `json:"local"`
	Any      bool     `json:"any"`
}

func main() {
	count := flag.Int("cases", 8000, "how many")
	out := flag.String("out", "../golden/endpoints/cases.jsonl.gz", "the file to write")
	flag.Parse()
	if err := write(*out, *count); err != nil {
		log.Fatal(err)
	}
}

func write(path string, count int) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	packed := gzip.NewWriter(file)
	lines := json.NewEncoder(packed)
	random := rand.New(rand.NewSource(4))
	for range count {
		c := draw(random)
		if err := c.answer(); err != nil {
			return err
		}
		if err := lines.Encode(c); err != nil {
			return err
		}
	}
	if err := packed.Close(); err != nil {
		return err
	}
	return file.Close()
}

func draw(r *rand.Rand) *testCase {
	c := &testCase{Internal: r.Intn(3) == 0, External: r.Intn(3) == 0}
	if r.Intn(6) != 0 {
		c.Zone = zones[r.Intn(2)]
	}
	c.Families = [][]string{{"IPv4"}, {"IPv4"}, {"IPv6"}, {"IPv4", "IPv6"}, {"IPv6", "IPv4"}}[r.Intn(5)]
	outside := r.Intn(2) == 0
	c.Ports = []port{{Name: "", Protocol: "TCP", Port: 80}}
	switch r.Intn(4) {
	case 0:
		c.Ports = []port{{Name: "a", Protocol: "TCP", Port: 80}, {Name: "b", Protocol: "UDP", Port: 80}}
	case 1:
		c.Ports = []port{{Name: "dns", Protocol: "UDP", Port: 53}}
	}
	if outside {
		for i := range c.Ports {
			c.Ports[i].NodePort = 30000 + int32(r.Intn(2000)*2+i)
		}
	}
	shape := style{ready: r.Intn(4), hints: r.Intn(6), terminating: r.Intn(3)}
	for _, v6 := range []bool{false, true} {
		if r.Intn(4) == 0 && v6 {
			continue
		}
		n := r.Intn(4)
		next := 0
		for i := range n {
			s := slice{V6: v6, Ports: slicePorts(r, c.Ports, i)}
			for range r.Intn(5) {
				next++
				s.Endpoints = append(s.Endpoints, shape.endpoint(r, v6, next))
			}
			// The same address twice in a slice, or moved: one of the two ends.
			if n == 1 && len(s.Endpoints) > 1 && r.Intn(4) == 0 {
				s.Endpoints[len(s.Endpoints)-1].Address = s.Endpoints[0].Address
			}
			if i > 0 && r.Intn(4) == 0 {
				before := c.Slices[len(c.Slices)-1]
				if len(before.Endpoints) > 0 {
					again := before.Endpoints[0]
					ends := again.Terminating == nil || !*again.Terminating
					again.Terminating = &ends
					again.Ready = maybe(r, 4)
					again.Node = &nodes[r.Intn(3)]
					s.Ports = before.Ports
					s.Endpoints = []endpoint{again}
				}
				c.Slices = append(c.Slices, s)
				break
			}
			c.Slices = append(c.Slices, s)
		}
	}
	return c
}

// How the endpoints of one case are drawn: uniform ones would hardly ever be all ready, or all hinted.
type style struct{ ready, hints, terminating int }

func (s style) endpoint(r *rand.Rand, v6 bool, number int) endpoint {
	e := endpoint{Address: fmt.Sprintf("10.1.0.%d", number)}
	if v6 {
		e.Address = fmt.Sprintf("fd00:1::%x", number)
	}
	switch s.ready {
	case 0:
		e.Ready = maybe(r, 2)
	case 1:
		ready := r.Intn(8) != 0
		e.Ready = &ready
	case 2:
		ready := false
		e.Ready = &ready
	}
	if s.terminating > 0 {
		e.Serving, e.Terminating = maybe(r, 2), maybe(r, 3)
	}
	if r.Intn(8) != 0 {
		e.Node = &nodes[r.Intn(3)]
	}
	some := func(of []string, chance int) []string {
		if r.Intn(chance) == 0 {
			return nil
		}
		first := r.Intn(3)
		if r.Intn(3) == 0 {
			return []string{of[first], of[(first+1)%3]}
		}
		return []string{of[first]}
	}
	switch s.hints {
	case 0:
		e.ZoneHints = some(zones, 1000)
	case 1:
		e.NodeHints = some(nodes, 1000)
		e.ZoneHints = some(zones, 1000)
	case 2:
		e.ZoneHints = some(zones, 8)
		e.NodeHints = some(nodes, 8)
	case 3:
		e.NodeHints = some(nodes, 1000)
	}
	return e
}

// Nil, true or false; true `weight` times as often as false.
func maybe(r *rand.Rand, weight int) *bool {
	n := r.Intn(weight + 2)
	if n == 0 {
		return nil
	}
	value := n > 1
	return &value
}

func slicePorts(r *rand.Rand, of []port, slice int) []port {
	var ports []port
	for _, p := range of {
		if len(of) > 1 && r.Intn(6) == 0 {
			continue
		}
		ports = append(ports, port{Name: p.Name, Protocol: p.Protocol, Port: 8000 + int32(slice)*10 + p.Port%7})
	}
	if r.Intn(8) == 0 {
		ports = append(ports, port{Name: "other", Protocol: "TCP", Port: 9999})
	}
	return ports
}

func (c *testCase) answer() error {
	service := c.service()
	c.Choices = []choice{}
	for _, family := range []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol} {
		services := proxy.NewServiceChangeTracker(family, nil, nil)
		services.Update(nil, service)
		servicePorts := proxy.ServicePortMap{}
		servicePorts.Update(services)
		tracker := proxy.NewEndpointsChangeTracker(family, node,
			func(info *proxy.BaseEndpointInfo, _ *proxy.ServicePortName) proxy.Endpoint { return info }, nil)
		for i, s := range c.Slices {
			tracker.EndpointSliceUpdate(s.object(i), false)
		}
		endpoints := proxy.EndpointsMap{}
		endpoints.Update(tracker)
		for name, servicePort := range servicePorts {
			labels := map[string]string{}
			if c.Zone != "" {
				labels[v1.LabelTopologyZone] = c.Zone
			}
			cluster, local, _, has := proxy.CategorizeEndpoints(endpoints[name], servicePort, node, labels)
			c.Choices = append(c.Choices, choice{
				V6: family == v1.IPv6Protocol, Port: name.Port, Protocol: string(name.Protocol),
				Cluster: names(cluster), Local: names(local), Any: has,
			})
		}
	}
	slices.SortFunc(c.Choices, func(a, b choice) int {
		if a.V6 != b.V6 {
			if b.V6 {
				return -1
			}
			return 1
		}
		return slices.Compare([]string{a.Port, a.Protocol}, []string{b.Port, b.Protocol})
	})
	return nil
}

func names(of []proxy.Endpoint) []string {
	list := []string{}
	for _, e := range of {
		list = append(list, e.String())
	}
	slices.Sort(list)
	return list
}

func (c *testCase) service() *v1.Service {
	internal, external := v1.ServiceInternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyCluster
	if c.Internal {
		internal = v1.ServiceInternalTrafficPolicyLocal
	}
	if c.External {
		external = v1.ServiceExternalTrafficPolicyLocal
	}
	service := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceTypeClusterIP, InternalTrafficPolicy: &internal, SessionAffinity: v1.ServiceAffinityNone,
		},
	}
	for _, p := range c.Ports {
		if p.NodePort != 0 {
			service.Spec.Type, service.Spec.ExternalTrafficPolicy = v1.ServiceTypeNodePort, external
		}
		service.Spec.Ports = append(service.Spec.Ports, v1.ServicePort{
			Name: p.Name, Protocol: v1.Protocol(p.Protocol), Port: p.Port, NodePort: p.NodePort,
		})
	}
	for _, f := range c.Families {
		address := map[string]string{"IPv4": "10.96.0.10", "IPv6": "fd00:96::10"}[f]
		service.Spec.ClusterIPs = append(service.Spec.ClusterIPs, address)
		service.Spec.IPFamilies = append(service.Spec.IPFamilies, v1.IPFamily(f))
	}
	service.Spec.ClusterIP = service.Spec.ClusterIPs[0]
	return service
}

func (s *slice) object(number int) *discovery.EndpointSlice {
	object := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("web-%d", number),
			Labels: map[string]string{discovery.LabelServiceName: "web"},
		},
		AddressType: discovery.AddressTypeIPv4,
	}
	if s.V6 {
		object.AddressType = discovery.AddressTypeIPv6
	}
	for _, p := range s.Ports {
		protocol := v1.Protocol(p.Protocol)
		object.Ports = append(object.Ports, discovery.EndpointPort{Name: &p.Name, Protocol: &protocol, Port: &p.Port})
	}
	for _, e := range s.Endpoints {
		d := discovery.Endpoint{
			Addresses:  []string{e.Address},
			Conditions: discovery.EndpointConditions{Ready: e.Ready, Serving: e.Serving, Terminating: e.Terminating},
			NodeName:   e.Node,
		}
		if e.ZoneHints != nil || e.NodeHints != nil {
			d.Hints = &discovery.EndpointHints{}
			for _, z := range e.ZoneHints {
				d.Hints.ForZones = append(d.Hints.ForZones, discovery.ForZone{Name: z})
			}
			for _, n := range e.NodeHints {
				d.Hints.ForNodes = append(d.Hints.ForNodes, discovery.ForNode{Name: n})
			}
		}
		object.Endpoints = append(object.Endpoints, d)
	}
	return object
}
