package main

import (
	"bytes"
	"fmt"
	"log"
	"os/exec"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const table = "duckmesh-netpol"

// syncPolicies writes the rules of all policies as one nftables table, in one transaction.
// IPv4 only; what is not allowed is dropped, so the client sees a time-out.
func (a *agent) syncPolicies() error {
	all, err := a.pods.List(labels.Everything())
	if err != nil {
		return err
	}
	policies, err := a.policies.List(labels.Everything())
	if err != nil {
		return err
	}
	pods := slices.DeleteFunc(all, func(p *corev1.Pod) bool { return !live(p) })
	// Sorted, so that the same state gives the same text and is not written again.
	slices.SortFunc(pods, func(p, q *corev1.Pod) int { return byName(p, q) })
	slices.SortFunc(policies, func(p, q *netv1.NetworkPolicy) int { return byName(p, q) })
	rules := a.ruleset(pods, policies)
	if rules == a.last {
		return nil
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("add table inet %s\ndelete table inet %s\n%s", table, table, rules))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %v: %s\n%s", err, out, rules)
	}
	a.last = rules
	log.Printf("network policies: %d, for %d pods", len(policies), len(pods))
	return nil
}

func byName(p, q metav1.Object) int {
	return strings.Compare(p.GetNamespace()+"/"+p.GetName(), q.GetNamespace()+"/"+q.GetName())
}

func live(p *corev1.Pod) bool {
	return p.Status.PodIP != "" && !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// ruleset gives the text of the table: one chain per pod and direction that a policy
// isolates, and two maps from addresses to those chains. Traffic from the node itself
// (probes) is never filtered, as the API demands.
func (a *agent) ruleset(pods []*corev1.Pod, policies []*netv1.NetworkPolicy) string {
	var chains bytes.Buffer
	var into, outOf []string
	for i, pod := range pods {
		if rules, isolated := a.ingress(pod, policies, pods); isolated {
			name := fmt.Sprintf("ingress-%d", i)
			writeChain(&chains, name, pod, rules)
			into = append(into, fmt.Sprintf("%s : jump %s", pod.Status.PodIP, name))
		}
		if rules, isolated := a.egress(pod, policies, pods); isolated {
			name := fmt.Sprintf("egress-%d", i)
			writeChain(&chains, name, pod, rules)
			outOf = append(outOf, fmt.Sprintf("%s : jump %s", pod.Status.PodIP, name))
		}
	}
	const open = "{ type filter hook %s priority 0; policy accept;\n  ct state established,related accept\n"
	return "table inet " + table + " {\n" + chains.String() +
		" chain forward " + fmt.Sprintf(open, "forward") + vmap("saddr", outOf) + vmap("daddr", into) + " }\n" +
		" chain input " + fmt.Sprintf(open, "input") + vmap("saddr", outOf) + " }\n}\n"
}

func writeChain(to *bytes.Buffer, name string, pod *corev1.Pod, rules []string) {
	ip := pod.Status.PodIP
	fmt.Fprintf(to, " chain %s { # %s/%s\n  ip saddr %s ip daddr %s return\n", name, pod.Namespace, pod.Name, ip, ip)
	for _, rule := range rules {
		fmt.Fprintf(to, "  %s\n", rule)
	}
	to.WriteString("  counter drop\n }\n")
}

func vmap(side string, entries []string) string {
	if len(entries) == 0 {
		return ""
	}
	return fmt.Sprintf("  ip %s vmap { %s }\n", side, strings.Join(entries, ", "))
}

// ingress gives the rules that let traffic into a pod, and whether any policy isolates it.
func (a *agent) ingress(pod *corev1.Pod, policies []*netv1.NetworkPolicy, pods []*corev1.Pod) (rules []string, isolated bool) {
	for _, policy := range policies {
		if !applies(policy, pod, netv1.PolicyTypeIngress) {
			continue
		}
		isolated = true
		for _, rule := range policy.Spec.Ingress {
			for _, peer := range a.peers(policy.Namespace, rule.From, pods) {
				rules = append(rules, accept(peer.match("saddr"), rule.Ports, pod)...)
			}
		}
	}
	return rules, isolated
}

// egress gives the rules that let traffic out of a pod, and whether any policy isolates it.
func (a *agent) egress(pod *corev1.Pod, policies []*netv1.NetworkPolicy, pods []*corev1.Pod) (rules []string, isolated bool) {
	for _, policy := range policies {
		if !applies(policy, pod, netv1.PolicyTypeEgress) {
			continue
		}
		isolated = true
		for _, rule := range policy.Spec.Egress {
			for _, peer := range a.peers(policy.Namespace, rule.To, pods) {
				if !hasNamed(rule.Ports) || peer.pods == nil {
					rules = append(rules, accept(peer.match("daddr"), rule.Ports, nil)...)
					continue
				}
				for _, target := range peer.pods { // a name means the port of each destination
					one := peerMatch{pods: []*corev1.Pod{target}}
					rules = append(rules, accept(one.match("daddr"), rule.Ports, target)...)
				}
			}
		}
	}
	return rules, isolated
}

func applies(policy *netv1.NetworkPolicy, pod *corev1.Pod, direction netv1.PolicyType) bool {
	return policy.Namespace == pod.Namespace &&
		slices.Contains(policy.Spec.PolicyTypes, direction) &&
		selects(&policy.Spec.PodSelector, pod.Labels)
}

func selects(selector *metav1.LabelSelector, of map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(of))
}

// peerMatch is one set of addresses on the other side.
type peerMatch struct {
	any    bool
	pods   []*corev1.Pod
	cidr   string
	except []string
}

func (a *agent) peers(namespace string, peers []netv1.NetworkPolicyPeer, pods []*corev1.Pod) []peerMatch {
	if len(peers) == 0 {
		return []peerMatch{{any: true}}
	}
	var out []peerMatch
	for _, peer := range peers {
		if peer.IPBlock != nil {
			if !strings.Contains(peer.IPBlock.CIDR, ":") { // no IPv6 here
				out = append(out, peerMatch{cidr: peer.IPBlock.CIDR, except: peer.IPBlock.Except})
			}
			continue
		}
		var match peerMatch
		for _, pod := range pods {
			if a.inNamespace(namespace, peer, pod) && (peer.PodSelector == nil || selects(peer.PodSelector, pod.Labels)) {
				match.pods = append(match.pods, pod)
			}
		}
		if len(match.pods) > 0 {
			out = append(out, match)
		}
	}
	return out
}

func (a *agent) inNamespace(own string, peer netv1.NetworkPolicyPeer, pod *corev1.Pod) bool {
	if peer.NamespaceSelector == nil {
		return pod.Namespace == own
	}
	namespace, err := a.namespaces.Get(pod.Namespace)
	return err == nil && selects(peer.NamespaceSelector, namespace.Labels)
}

// match gives the nft expression for the addresses; side is saddr or daddr.
func (m peerMatch) match(side string) string {
	switch {
	case m.any:
		return ""
	case m.cidr != "" && len(m.except) > 0:
		return fmt.Sprintf("ip %s %s ip %s != { %s } ", side, m.cidr, side, strings.Join(m.except, ", "))
	case m.cidr != "":
		return fmt.Sprintf("ip %s %s ", side, m.cidr)
	}
	ips := make([]string, 0, len(m.pods))
	for _, pod := range m.pods {
		ips = append(ips, pod.Status.PodIP)
	}
	return fmt.Sprintf("ip %s { %s } ", side, strings.Join(ips, ", "))
}

// accept gives one rule for each port; named ports are looked up in target.
func accept(addresses string, ports []netv1.NetworkPolicyPort, target *corev1.Pod) []string {
	var rules []string
	for _, port := range portMatches(ports, target) {
		rules = append(rules, addresses+port+"return")
	}
	return rules
}

func portMatches(ports []netv1.NetworkPolicyPort, target *corev1.Pod) []string {
	if len(ports) == 0 {
		return []string{""}
	}
	var out []string
	for _, port := range ports {
		protocol := "tcp"
		if port.Protocol != nil {
			protocol = strings.ToLower(string(*port.Protocol))
		}
		switch {
		case port.Port == nil:
			out = append(out, "meta l4proto "+protocol+" ")
		case port.Port.Type == intstr.String:
			for _, number := range namedPorts(target, port.Port.StrVal, protocol) {
				out = append(out, fmt.Sprintf("%s dport %d ", protocol, number))
			}
		case port.EndPort != nil:
			out = append(out, fmt.Sprintf("%s dport %d-%d ", protocol, port.Port.IntVal, *port.EndPort))
		default:
			out = append(out, fmt.Sprintf("%s dport %d ", protocol, port.Port.IntVal))
		}
	}
	return out
}

func namedPorts(pod *corev1.Pod, name, protocol string) []int32 {
	var out []int32
	if pod == nil {
		return nil
	}
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, port := range container.Ports {
			same := strings.EqualFold(string(port.Protocol), protocol) || (port.Protocol == "" && protocol == "tcp")
			if port.Name == name && same {
				out = append(out, port.ContainerPort)
			}
		}
	}
	return out
}

func hasNamed(ports []netv1.NetworkPolicyPort) bool {
	return slices.ContainsFunc(ports, func(p netv1.NetworkPolicyPort) bool {
		return p.Port != nil && p.Port.Type == intstr.String
	})
}
