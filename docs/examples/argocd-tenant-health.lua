-- Health of a duckmesh Tenant for Argo CD: argocd-cm, resource.customizations.health.duckmesh.io_Tenant.
local status = obj.status
if status == nil or status.conditions == nil then
  return {status = "Progressing", message = "The operator has not come to it yet."}
end
local is = {}
for _, condition in ipairs(status.conditions) do
  is[condition.type] = condition
end
local function say(health, condition)
  return {status = health, message = condition.reason .. ": " .. condition.message}
end
local function holds(kind, value)
  return is[kind] ~= nil and is[kind].status == value
end
if (status.observedGeneration or 0) < obj.metadata.generation then
  return {status = "Progressing", message = "The operator has not come to this change yet."}
end
if holds("Stalled", "True") then return say("Degraded", is.Stalled) end
if holds("Suspended", "True") then return say("Suspended", is.Suspended) end
if holds("Reconciling", "True") then return say("Progressing", is.Reconciling) end
if not holds("Ready", "True") then
  return is.Ready and say("Progressing", is.Ready) or {status = "Progressing", message = "Not ready yet."}
end
if holds("Fresh", "False") then return say("Degraded", is.Fresh) end
if holds("SnapshotHealthy", "False") then return say("Degraded", is.SnapshotHealthy) end
return say("Healthy", is.Ready)
