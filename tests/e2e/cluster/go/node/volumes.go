package main

import (
	"context"
	"log"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const (
	provisioner     = "duckmesh.test/local-path"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	selectedNode    = "volume.kubernetes.io/selected-node"
	hostnameLabel   = "kubernetes.io/hostname"
	volumeDirectory = 0o777 // pods of any user write there
)

// syncVolumes makes a volume for each claim that waits for one, and removes the volumes
// whose claim is gone.
func (a *agent) syncVolumes(ctx context.Context) error {
	claims, err := a.claims.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, claim := range claims {
		if class := a.classOf(claim); class != nil {
			if err := a.provide(ctx, claim, class); err != nil {
				return err
			}
		}
	}
	volumes, err := a.pvs.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, volume := range volumes {
		if mayGo(volume) {
			if err := a.remove(ctx, volume.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// classOf returns the storage class of a claim that this agent must serve now, else nil.
func (a *agent) classOf(claim *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	if claim.Spec.VolumeName != "" || claim.Spec.StorageClassName == nil || claim.DeletionTimestamp != nil {
		return nil
	}
	class, err := a.classes.Get(*claim.Spec.StorageClassName)
	if err != nil || class.Provisioner != provisioner {
		return nil
	}
	late := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	if late && claim.Annotations[selectedNode] == "" {
		return nil
	}
	return class
}

func (a *agent) provide(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	name := "pvc-" + string(claim.UID)
	if _, err := a.pvs.Get(name); err == nil {
		return nil
	}
	dir := filepath.Join(a.volumes, name)
	old := syscall.Umask(0)
	err := os.MkdirAll(dir, volumeDirectory)
	syscall.Umask(old)
	if err != nil {
		return err
	}
	_, err = a.client.CoreV1().PersistentVolumes().Create(ctx, a.volume(name, dir, claim, class), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	log.Printf("volume %s made for %s/%s", name, claim.Namespace, claim.Name)
	return nil
}

// volume describes a directory as a "local" volume, so that fsGroup is applied to it.
func (a *agent) volume(name, dir string, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) *corev1.PersistentVolume {
	policy := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	here := corev1.NodeSelectorRequirement{Key: hostnameLabel, Operator: corev1.NodeSelectorOpIn, Values: []string{a.node}}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: policy,
			StorageClassName:              class.Name,
			VolumeMode:                    claim.Spec.VolumeMode,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{here}}},
			}},
		},
	}
}

func mayGo(volume *corev1.PersistentVolume) bool {
	return volume.Annotations[provisionedBy] == provisioner &&
		volume.Status.Phase == corev1.VolumeReleased &&
		volume.DeletionTimestamp == nil &&
		volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

func (a *agent) remove(ctx context.Context, name string) error {
	if err := os.RemoveAll(filepath.Join(a.volumes, name)); err != nil {
		return err
	}
	err := a.client.CoreV1().PersistentVolumes().Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	log.Printf("volume %s removed", name)
	return nil
}
